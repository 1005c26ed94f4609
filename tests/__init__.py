"""Tests; those that several files share say what differed when they fail."""

import pytest

pytest.register_assert_rewrite("tests.support.command_line")

"""Tests that the default run leaves out, so that it stays under ten minutes on 2 cores; `.ci/run` runs them.

Each is the longest of its kind, and something quicker of the same kind stays. They carry the markers `thorough` and
`slow`. What is named here has to exist: a run over all tests says so where it does not.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

WHOLE = {
    "contracts/test_walkthroughs.py::test_a_page_can_be_followed",
    "attacks/test_littered.py::test_after_a_kill_the_next_command_clears_away",
    "attacks/test_printed.py::test_every_name_can_be_written_in_any_locale",
    "measuring/test_benchmark.py::test_every_candidate_has_a_row_for_every_setting",
    "measuring/test_benchmark.py::test_every_sample_is_in_it",
    "cli/test_commands.py::test_a_run_that_is_interrupted_goes_on_with_the_same_command",
    "cli/test_factorize.py::test_it_is_retrained_and_that_exported_and_judged",
    "cli/test_latency.py::test_a_bench_says_why_and_a_pack_is_written_and_read",
    "cli/test_latency.py::test_a_speed_that_overhead_forbids_is_refused_with_what_can_be_had",
    "cli/test_latency.py::test_a_table_is_measured_and_pruned_with",
    "cli/test_quantize.py::test_a_checkpoint_becomes_an_artifact_timed_on_the_clock",
    "cli/test_repair.py::test_a_sample_model_without_nine_weights_of_ten_works_again",
    "cli/test_repair.py::test_without_data_the_images_are_synthetic_and_the_results_say_so",
    "jobs/test_coverage.py::test_an_ordinary_network_gets_all_the_way",
    "jobs/test_coverage.py::test_the_command_makes_a_table_and_json",
    "channels/test_operator_table.py::test_the_page_says_of_some_operators_what_is_seen",
    "measuring/pack/test_folder.py::test_a_table_comes_of_it_that_knows_the_network",
    "measuring/pack/test_folder.py::test_what_comes_back_is_a_bench_like_any_other",
    "training/test_bn_penalty.py::test_the_command_line_hands_it_to_the_recipe",
    "pruning/speed/test_search.py::test_a_latency_is_a_speed_up_over_what_the_dense_network_takes",
    "pruning/speed/test_search.py::test_a_network_that_measures_slower_is_not_given_out",
    "pruning/speed/test_search.py::test_a_table_from_another_machine_predicts_and_measures_nothing",
    "pruning/speed/test_search.py::test_uniform_pruning_reaches_a_speed_by_its_ratio",
    "pruning/speed/test_search.py::test_what_is_known_is_not_measured_again",
    "pruning/speed/test_search.py::test_what_the_files_measure_otherwise_than_the_plan_is_made_up_for",
    "studies/test_studies.py::test_a_study_in_two_processes_is_interrupted_and_goes_on",
    "studies/papers/test_families.py::test_a_small_run_says_all_of_every_arm",
    "studies/papers/test_lottery_ticket.py::test_everything_runs_and_the_page_has_every_claim",
    "studies/papers/test_lottery_ticket.py::test_masks_of_a_chain_are_nested_with_exact_counts_and_no_weight_is_left_outside",
    "studies/papers/test_rethinking.py::test_lengths_and_macs_are_those_of_the_arms",
    "studies/papers/test_rethinking.py::test_one_replicate_decides_nothing",
    "studies/papers/test_supermask.py::test_the_smoke_scale_runs_and_says_everything",
    "studies/papers/test_transfer_pruning.py::test_every_arm_trains_as_many_epochs_from_the_same_first_network",
    "studies/papers/test_transfer_pruning.py::test_every_budget_is_met",
    "measuring/tables/test_measured.py::test_another_networks_operators_join_the_target_s_file",
    "pruning/test_while_training.py::test_an_interrupted_run_goes_on_with_the_same_command",
}
EVERY = {  # of the variants of a test every so many stay, from the first
    "attacks/test_pickles.py::test_whole_networks_of_torchvision_come_as_they_were": 3,
    "attacks/test_printed.py::test_square_brackets_and_colons_in_a_name_are_printed": 4,
    "channels/test_agreement.py::test_a_program_that_is_the_network_passes": 3,
    "checkpoint/test_loading.py::test_a_torchvision_network_is_recognised_in_every_wrapping": 3,
    "checkpoint/test_loading.py::test_other_families_are_recognised": 2,
    "cli/test_repair.py::test_every_repair_takes_masked_weights": 2,
    "cli/test_repair.py::test_every_repair_writes_an_artifact_that_evaluates": 2,
    "planning/criteria/test_criteria.py::test_a_criterion_leaves_the_model_as_it_was": 3,
    "planning/criteria/test_criteria.py::test_a_frozen_model_scores_like_a_live_one": 3,
    "planning/criteria/test_criteria.py::test_a_transformer_can_be_scored": 3,
    "planning/criteria/test_criteria.py::test_equal_channels_score_alike": 3,
    "planning/criteria/test_criteria.py::test_without_data_a_criterion_that_needs_it_is_refused": 3,
    "pruning/repair/test_distillation.py::test_what_comes_back_is_the_best_that_was_judged": 4,
    "planning/test_elimination.py::test_every_channel_leaves_once_and_nothing_is_won_by_it": 3,
    "export/test_onnx.py::test_attention_over_more_than_batch_and_heads": 4,
    "export/test_onnx.py::test_onnxruntime_says_what_torch_says": 3,
    "pruning/test_low_rank.py::test_with_pruning_it_is_written_and_read_in_a_fresh_process": 2,
    "graph/test_gradients.py::test_weight_gradients_by_width_agree_with_float64": 2,
    "surgery/test_mending.py::test_whoever_prunes_is_told_what_the_network_is_kept_as": 2,
    "channels/test_open_sizes.py::test_a_program_says_at_other_sizes_what_the_silenced_network_says": 3,
    "pruning/test_pipeline.py::test_a_cost_budget_is_met_within_one_per_cent": 4,
    "pruning/test_pipeline.py::test_levels_reach_the_same_width_as_one_shot": 4,
    "pruning/test_pipeline.py::test_the_sample_models_are_proved": 4,
    "pruning/test_probing.py::test_the_network_that_is_pruned_measured_and_repaired_stays_as_it_was": 3,
    "pruning/test_probing.py::test_the_test_split_decides_nothing": 2,
    "pruning/repair/test_least_squares.py::test_a_repaired_network_is_nearer_to_the_dense_one_and_the_callers_stay": 3,
    "pruning/repair/test_least_squares.py::test_channels_that_repeat_others_are_made_up_for_exactly": 4,
    "planning/test_sensitivity.py::test_every_topology_has_finite_curves_and_keeps_its_weights": 3,
    "surgery/test_shrinking.py::test_a_small_network_trains_and_can_be_pruned_again": 3,
    "surgery/test_shrinking.py::test_the_callers_network_stays_as_it_was": 3,
    "surgery/test_shrinking.py::test_the_silenced_network_differs_from_the_dense_one": 3,
    "measuring/tables/test_skeletons.py::test_a_narrowed_graph_is_the_narrow_network_exported": 3,
    "pruning/speed/test_search.py::test_a_table_that_is_wrong_is_corrected_on_the_clock": 2,
    "pruning/speed/test_search.py::test_what_is_asked_for_is_what_the_clock_says": 3,
    "studies/test_studies.py::test_accuracy_is_the_test_splits_and_nothing_else_hangs_on_its_labels": 3,
    "studies/papers/test_rethinking.py::test_whoever_chooses_the_widths_leaves_the_macs_of_uniform_pruning": 5,
    "measuring/tables/test_measured.py::test_a_table_is_measured_and_the_next_run_takes_it_from_the_cache": 2,
    "measuring/tables/test_measured.py::test_networks_whose_graph_holds_widths_are_exported_one_by_one": 3,
    "channels/test_tracing.py::test_half_of_the_channels_go_twice": 4,
    "channels/test_tracing.py::test_half_of_the_features_of_every_head_go_twice": 3,
    "channels/test_tracing.py::test_shapes_alone_say_what_values_say": 4,
    "channels/test_tracing.py::test_the_units_are_those_that_were_counted_by_hand": 2,
    "pruning/test_while_training.py::test_it_writes_an_artifact_that_goes_on": 2,
    "training/test_events_in_training.py::test_an_interrupted_run_goes_on_bit_by_bit": 3,
    "measuring/test_layer_times.py::test_every_layer_has_its_time_before_and_after": 2,
    "contracts/test_wrong_invocations.py::test_a_wrong_value_of_any_option_is_one_error": 4,
}


def leave_out(items: Sequence[pytest.Item], *, whole_run: bool) -> None:
    """Mark what is named above among the collected tests; in a run over all of them each name has to be there."""
    seen = dict.fromkeys((*WHOLE, *EVERY), 0)
    for item in items:
        name = f"{item.nodeid.removeprefix('tests/').split('::')[0]}::{getattr(item, 'originalname', item.name)}"
        if name not in seen:
            continue
        if name in WHOLE or seen[name] % EVERY[name]:
            item.add_marker(pytest.mark.thorough)
            item.add_marker(pytest.mark.slow)
        seen[name] += 1
    gone = [name for name, count in seen.items() if not count]
    if whole_run and gone:
        raise pytest.UsageError(f"tests/support/thorough.py names tests that are not there: {', '.join(gone)}")

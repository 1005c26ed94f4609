"""The studies: what a study is, how it runs, and the papers that are run again."""

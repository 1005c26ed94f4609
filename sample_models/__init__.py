"""Small networks trained on Fashion-MNIST, for the demo, the tests and the benchmarks."""

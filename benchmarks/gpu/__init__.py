"""The steps of `benchmarks.gpu_proof`, each a program of its own."""

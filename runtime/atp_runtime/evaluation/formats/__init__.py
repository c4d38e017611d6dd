"""The file formats of benchmarks, each as its authors publish it; one module per format."""

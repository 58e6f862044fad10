"""What the first machine with a GPU runs: `python -m tools.gpu_check --out DIR`.

Stages verify and measure the CUDA kernels. Each takes less than ten minutes and leaves a JSON file;
a run goes on where the one before it ended. `kit` gathers here what that machine lacks.
"""

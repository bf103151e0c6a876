"""Training kernels in C, compiled for this machine when training starts. Without a compiler, torch computes."""

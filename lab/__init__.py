"""The kernel lab: real kernels under software emulation, with the project's tests inside."""

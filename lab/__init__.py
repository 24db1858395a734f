"""The kernel lab: real kernels, booted under software emulation, with the project's tests inside."""

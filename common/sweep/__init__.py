"""Many runs from one YAML file, on this machine or a Slurm cluster (`python -m common.sweep --help`)."""

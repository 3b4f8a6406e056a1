"""What benchmarks and tests share: every objective, its plain formula and its peers."""

"""What `benchmarks/report` is made of: results in, the README's tables and plots out."""

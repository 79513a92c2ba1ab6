//! Benchmarks of Function Gateway.

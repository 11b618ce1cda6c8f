"""What the benchmarks share: memory cgroups, cold caches, paired timing, facts about the machine, result files."""

"""What every other package may use: errors, types, files, generators, threads. It imports no other package."""

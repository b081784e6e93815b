"""Studies of several runs: what training tasks together costs and brings."""

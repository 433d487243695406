"""Load tests: real processes, side by side with peers. They report figures, they assert nothing."""

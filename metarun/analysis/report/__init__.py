"""One HTML file that shows a folder of runs: what they are, how they learned, what they reached, where they fail."""

"""From a dense matrix to the stages of an SSS matrix."""

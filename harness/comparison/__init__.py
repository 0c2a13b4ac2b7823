"""Two runs held against each other: in total, kernel by kernel, and under which conditions."""

"""Time Tracker: patches of many variates, which attention mixes (arXiv 2505.15151)."""

"""Tools for whole corpora: convert, clean, inspect, compare, synthesize."""

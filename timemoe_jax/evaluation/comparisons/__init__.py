"""Comparing methods: on a user's own series, and runs with one another, with significance."""

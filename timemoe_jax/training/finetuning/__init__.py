"""Fine-tuning that keeps the start unless something better is found."""

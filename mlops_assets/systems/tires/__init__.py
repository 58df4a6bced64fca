"""Photos of tires, good or defective (정상 / 결함)."""

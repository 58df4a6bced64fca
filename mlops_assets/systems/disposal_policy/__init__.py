"""Regional rules for putting out household waste: the team's sheet, kept in PostgreSQL with its history. Data only, no model."""

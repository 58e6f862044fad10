"""What a developer, CI or the first machine with a GPU runs beside build and tests."""

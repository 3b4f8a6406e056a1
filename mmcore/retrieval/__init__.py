"""Finding across modalities."""

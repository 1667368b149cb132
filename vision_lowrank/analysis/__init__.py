"""Reports on trained adapters: spectra, intruder dimensions, forgetting, separation of embeddings."""

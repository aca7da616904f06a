"""Uses trained models: batch prediction and export."""

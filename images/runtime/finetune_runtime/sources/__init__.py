"""Where models and data come from: S3, volumes, ConfigMaps and model hubs."""

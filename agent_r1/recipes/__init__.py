"""Complete experiments that the project ships: data, model and settings that belong together."""

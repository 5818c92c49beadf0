"""An OpenAI-compatible endpoint over an engine, which records what agents do through it."""

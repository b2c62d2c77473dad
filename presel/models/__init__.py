"""The models: loading, encoding, tuning, scoring, generating. Nothing here knows of stages."""

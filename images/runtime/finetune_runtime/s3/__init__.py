"""S3-compatible storage: one small client whose errors name the cause and the cure."""

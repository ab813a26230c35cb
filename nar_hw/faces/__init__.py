"""Faces: identities and pairs on disk, heads with margins, verification and identification."""

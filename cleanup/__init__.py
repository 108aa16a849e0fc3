"""Episode Cleanup: refines the face tracks, embeddings and identities of an episode."""

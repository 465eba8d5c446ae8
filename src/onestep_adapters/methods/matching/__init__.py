"""Methods that match distributions: score gaps (DMD, DMD2, f-distill), score identities (SiD), moments (IMM)."""

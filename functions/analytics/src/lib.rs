//! `analytics`: answers from both layers.

//! backend-views

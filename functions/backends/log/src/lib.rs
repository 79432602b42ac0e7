//! backend-log

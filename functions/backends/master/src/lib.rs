//! backend-master

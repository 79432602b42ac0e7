//! How connections are made safe.

use openssl::{
    error::ErrorStack,
    ssl::{SslConnector, SslConnectorBuilder, SslMethod, SslVerifyMode},
};

use super::url::Tls;

/// Where most systems keep the authorities that they trust; OpenSSL was built in and does not know.
const SYSTEM: &str = "/etc/ssl/certs/ca-certificates.crt";
/// OpenSSL's number for a certificate that names another address.
const OTHER_ADDRESS: i32 = 64;

/// `None` for connections in the clear.
pub(super) fn context(tls: &Option<Tls>) -> Result<Option<SslConnectorBuilder>, ErrorStack> {
    let Some(tls) = tls else { return Ok(None) };
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    match &tls.ca {
        Some(path) => builder.set_ca_file(path)?,
        None if std::path::Path::new(SYSTEM).exists() => builder.set_ca_file(SYSTEM)?,
        None => {}
    }
    if !tls.verify_host {
        // Whoever the authority vouches for will do, whatever its address is.
        builder.set_verify_callback(SslVerifyMode::PEER, |good, certificate| {
            good || certificate.error().as_raw() == OTHER_ADDRESS
        });
    }
    Ok(Some(builder))
}

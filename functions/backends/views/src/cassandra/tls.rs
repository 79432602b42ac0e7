//! TLS of the connections.

use openssl::{
    error::ErrorStack,
    ssl::{SslConnector, SslConnectorBuilder, SslMethod, SslVerifyMode},
};

use super::url::Tls;

/// Where most systems keep trusted authorities; the bundled OpenSSL does not know.
const SYSTEM: &str = "/etc/ssl/certs/ca-certificates.crt";
/// OpenSSL's error number for a certificate that names another address.
const OTHER_ADDRESS: i32 = 64;

/// `None` for unencrypted connections.
pub(super) fn context(tls: &Option<Tls>) -> Result<Option<SslConnectorBuilder>, ErrorStack> {
    let Some(tls) = tls else { return Ok(None) };
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    match &tls.ca {
        Some(path) => builder.set_ca_file(path)?,
        None if std::path::Path::new(SYSTEM).exists() => builder.set_ca_file(SYSTEM)?,
        None => {}
    }
    if !tls.verify_host {
        // Accept any certificate that the authority signed, whatever address it names.
        builder.set_verify_callback(SslVerifyMode::PEER, |good, certificate| {
            good || certificate.error().as_raw() == OTHER_ADDRESS
        });
    }
    Ok(Some(builder))
}

//! Keys: what cosign and `skopeo generate-sigstore-key` write, and plain PKCS#8.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use crypto_secretbox::aead::Aead as _;
use crypto_secretbox::{KeyInit as _, XSalsa20Poly1305};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{self, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey, VerificationAlgorithm};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What comes before the point in the public key of each kind (RFC 5480, RFC 8410).
const P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];
const P384: [u8; 23] = [
    0x30, 0x76, 0x30, 0x10, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x05, 0x2b, 0x81, 0x04, 0x00,
    0x22, 0x03, 0x62, 0x00,
];
const ED25519: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// The label that containers/image writes; cosign's own of old is read too.
const ENCRYPTED: &str = "ENCRYPTED SIGSTORE PRIVATE KEY";
const ENCRYPTED_BY_COSIGN: &str = "ENCRYPTED COSIGN PRIVATE KEY";
/// What scrypt may cost: a key file that asks for more than 1 GiB is no key file.
const MOST_MEMORY: u64 = 1 << 30;

/// An encrypted key as it is in its file (go-securesystemslib, `encrypted`).
#[derive(Serialize, Deserialize)]
struct Sealed {
    kdf: Kdf,
    cipher: Cipher,
    ciphertext: String,
}

#[derive(Serialize, Deserialize)]
struct Kdf {
    name: String,
    params: Params,
    salt: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
struct Params {
    #[serde(rename = "N")]
    n: u64,
    r: u32,
    p: u32,
}

#[derive(Serialize, Deserialize)]
struct Cipher {
    name: String,
    nonce: String,
}

/// A key that signs: ECDSA on P-256 with SHA-256.
#[derive(Debug)]
pub struct SigningKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
}

fn unusable(path: &Path, reason: impl Into<String>, help: Option<&str>) -> Error {
    Error::Host { what: format!("key {}", path.display()), reason: reason.into(), help: help.map(str::to_owned) }
}

impl SigningKey {
    /// Reads a private key: PKCS#8 in PEM, or one sealed with a passphrase as cosign and skopeo do.
    ///
    /// # Errors
    /// When the file cannot be read, the passphrase is another, or the key is of another kind.
    pub fn read(path: &Path, passphrase: &[u8]) -> Result<Self> {
        let text = fs::read(path).map_err(|e| Error::io("read", path, e))?;
        let pem = pem::parse(&text).map_err(|e| unusable(path, format!("no PEM: {e}"), None))?;
        let pkcs8 = match pem.tag() {
            "PRIVATE KEY" => pem.contents().to_vec(),
            ENCRYPTED | ENCRYPTED_BY_COSIGN => open(pem.contents(), passphrase).map_err(|e| unusable(path, e, None))?,
            other => {
                let help = "`openssl pkcs8 -topk8 -nocrypt -in KEY` writes it in the form that is read";
                return Err(unusable(path, format!("`{other}` is not a form that is read"), Some(help)));
            }
        };
        Self::of(&pkcs8).map_err(|reason| unusable(path, reason, Some("only ECDSA keys on P-256 sign")))
    }

    fn of(pkcs8: &[u8]) -> std::result::Result<Self, String> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&signature::ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8, &random);
        Ok(Self { pair: pair.map_err(|e| format!("not a key that can sign: {e}"))?, random })
    }

    /// Makes a pair: `PREFIX.private`, sealed with the passphrase, for its owner alone, and `PREFIX.pub`. Files that are
    /// there stay as they are.
    ///
    /// # Errors
    /// When a file is there already or cannot be written.
    pub fn generate(prefix: &Path, passphrase: &[u8]) -> Result<Self> {
        let random = SystemRandom::new();
        let failed = || unusable(prefix, "no random numbers", None);
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(&signature::ECDSA_P256_SHA256_ASN1_SIGNING, &random);
        let pkcs8 = pkcs8.map_err(|_| failed())?;
        let key = Self::of(pkcs8.as_ref()).map_err(|reason| unusable(prefix, reason, None))?;
        let sealed = seal(pkcs8.as_ref(), passphrase, &random).ok_or_else(failed)?;
        let file = |ending: &str| {
            let mut name = prefix.as_os_str().to_owned();
            name.push(ending);
            std::path::PathBuf::from(name)
        };
        let write = |path: std::path::PathBuf, mode: u32, text: String| -> Result<()> {
            let made = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&path);
            let mut made = made.map_err(|e| Error::io("make", &path, e))?;
            made.write_all(text.as_bytes()).and_then(|()| made.sync_all()).map_err(|e| Error::io("write", &path, e))
        };
        write(file(".private"), 0o600, encode(&pem::Pem::new(ENCRYPTED, sealed)))?;
        write(file(".pub"), 0o644, key.public_pem())?;
        Ok(key)
    }

    /// Whether a file's key is sealed with a passphrase.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn is_sealed(path: &Path) -> Result<bool> {
        let text = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        Ok(text.contains("ENCRYPTED"))
    }

    /// The public key as other programs read it.
    #[must_use]
    pub fn public_pem(&self) -> String {
        let der = [P256.as_slice(), self.pair.public_key().as_ref()].concat();
        encode(&pem::Pem::new("PUBLIC KEY", der))
    }

    pub(crate) fn public(&self) -> PublicKey {
        let kind: &'static dyn VerificationAlgorithm = &signature::ECDSA_P256_SHA256_ASN1;
        PublicKey { kind, point: self.pair.public_key().as_ref().to_vec(), origin: "the signing key".to_owned() }
    }

    pub(crate) fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        self.pair.sign(&self.random, message).ok().map(|signature| signature.as_ref().to_vec())
    }
}

fn open(sealed: &[u8], passphrase: &[u8]) -> std::result::Result<Vec<u8>, String> {
    let sealed: Sealed = serde_json::from_slice(sealed).map_err(|e| format!("not a sealed key: {e}"))?;
    if sealed.kdf.name != "scrypt" || sealed.cipher.name != "nacl/secretbox" {
        return Err(format!("sealed by {} and {}, which is not read", sealed.kdf.name, sealed.cipher.name));
    }
    let bytes = |text: &str| BASE64.decode(text).map_err(|e| format!("not a sealed key: {e}"));
    let key = stretch(passphrase, &bytes(&sealed.kdf.salt)?, &sealed.kdf.params)?;
    let nonce: [u8; 24] = bytes(&sealed.cipher.nonce)?.try_into().map_err(|_| "not a sealed key: its nonce")?;
    let plain = XSalsa20Poly1305::new(&key.into()).decrypt(&nonce.into(), bytes(&sealed.ciphertext)?.as_slice());
    plain.map_err(|_| "the passphrase is another one".to_owned())
}

fn seal(pkcs8: &[u8], passphrase: &[u8], random: &SystemRandom) -> Option<Vec<u8>> {
    let (mut salt, mut nonce) = ([0; 32], [0; 24]);
    random.fill(&mut salt).and_then(|()| random.fill(&mut nonce)).ok()?;
    // What cosign and containers/image write.
    let params = Params { n: 1 << 16, r: 8, p: 1 };
    let key = stretch(passphrase, &salt, &params).ok()?;
    let ciphertext = XSalsa20Poly1305::new(&key.into()).encrypt(&nonce.into(), pkcs8).ok()?;
    let sealed = Sealed {
        kdf: Kdf { name: "scrypt".to_owned(), params, salt: BASE64.encode(salt) },
        cipher: Cipher { name: "nacl/secretbox".to_owned(), nonce: BASE64.encode(nonce) },
        ciphertext: BASE64.encode(ciphertext),
    };
    serde_json::to_vec(&sealed).ok()
}

fn stretch(passphrase: &[u8], salt: &[u8], params: &Params) -> std::result::Result<[u8; 32], String> {
    let (n, r, p) = (params.n, params.r, params.p);
    let costs = n.checked_mul(128 * u64::from(r)).filter(|bytes| *bytes <= MOST_MEMORY && p <= 16);
    if !n.is_power_of_two() || n < 2 || costs.is_none() {
        return Err(format!("sealed with parameters that are not accepted (N={n}, r={r}, p={p})"));
    }
    let log = u8::try_from(n.trailing_zeros()).unwrap_or(u8::MAX);
    let params = scrypt::Params::new(log, r, p).map_err(|e| e.to_string())?;
    let mut key = [0; 32];
    scrypt::scrypt(passphrase, salt, &params, &mut key).map_err(|e| e.to_string())?;
    Ok(key)
}

/// A key that says who signed.
#[derive(Clone)]
pub struct PublicKey {
    kind: &'static dyn VerificationAlgorithm,
    point: Vec<u8>,
    /// The file that it is from.
    pub(crate) origin: String,
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PublicKey({})", self.origin)
    }
}

impl PublicKey {
    /// Reads a public key: ECDSA on P-256 or P-384, or Ed25519, in PEM.
    ///
    /// # Errors
    /// When the file cannot be read, or has another kind of key.
    pub fn read(path: &Path) -> Result<Self> {
        let text = fs::read(path).map_err(|e| Error::io("read", path, e))?;
        Self::parse(&text, &path.display().to_string()).map_err(|reason| unusable(path, reason, None))
    }

    pub(crate) fn parse(text: &[u8], origin: &str) -> std::result::Result<Self, String> {
        let pem = pem::parse(text).map_err(|e| format!("no PEM: {e}"))?;
        if pem.tag() != "PUBLIC KEY" {
            return Err(format!("`{}` is no public key", pem.tag()));
        }
        let der = pem.contents();
        let kinds: [(&[u8], usize, &'static dyn VerificationAlgorithm); 3] = [
            (&P256, 65, &signature::ECDSA_P256_SHA256_ASN1),
            (&P384, 97, &signature::ECDSA_P384_SHA256_ASN1),
            (&ED25519, 32, &signature::ED25519),
        ];
        let found =
            kinds.into_iter().find(|(prefix, length, _)| der.starts_with(prefix) && der.len() == prefix.len() + length);
        let Some((prefix, _, kind)) = found else {
            return Err("not a key on P-256, P-384 or Ed25519: others are not read".to_owned());
        };
        Ok(Self { kind, point: der[prefix.len()..].to_vec(), origin: origin.to_owned() })
    }

    pub(crate) fn signed(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.kind, &self.point).verify(message, signature).is_ok()
    }
}

/// With the line ends of this system's files.
fn encode(pem: &pem::Pem) -> String {
    pem::encode_config(pem, pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_made_sealed_and_opened() {
        let dir = tempfile::tempdir().unwrap();
        let prefix = dir.path().join("team");
        let made = SigningKey::generate(&prefix, b"secret").unwrap();
        let file = dir.path().join("team.private");
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(SigningKey::is_sealed(&file).unwrap());
        let read = SigningKey::read(&file, b"secret").unwrap();
        assert_eq!(read.public_pem(), made.public_pem());
        let public = PublicKey::read(&dir.path().join("team.pub")).unwrap();
        let signature = read.sign(b"message").unwrap();
        assert!(public.signed(b"message", &signature) && !public.signed(b"another", &signature));
        let wrong = SigningKey::read(&file, b"wrong").unwrap_err();
        assert!(wrong.to_string().contains("passphrase"), "{wrong}");
        assert!(SigningKey::generate(&prefix, b"").is_err(), "what is there stays");
        assert!(PublicKey::read(&file).is_err());
        assert!(SigningKey::read(&dir.path().join("team.pub"), b"").is_err());
        for (n, r, p) in [(3, 8, 1), (0, 8, 1), (1 << 40, 8, 1), (1 << 16, u32::MAX, 1), (1 << 16, 8, 1000)] {
            assert!(stretch(b"x", b"y", &Params { n, r, p }).is_err(), "{n} {r} {p}");
        }
    }
}

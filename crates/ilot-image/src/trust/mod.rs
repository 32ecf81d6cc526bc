//! Who says that an image is his: signatures as cosign and containers/image make them, and the policy that asks for them.

mod key;
mod policy;
pub(crate) mod signature;

pub use key::{PublicKey, SigningKey};
pub(crate) use policy::Policy;
pub use signature::{Signed, Verified};

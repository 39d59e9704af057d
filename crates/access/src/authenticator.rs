//! Decides whether a key is accepted, usually without asking PostgreSQL.
//!
//! A key whose secret PostgreSQL confirmed is remembered with its version. [`Authenticator::refresh`], which runs every two
//! seconds, asks for the versions of the remembered keys: a key that was revoked, rotated or removed is forgotten. A
//! memory that was not confirmed for four seconds counts only while PostgreSQL does not answer, and only for the grace
//! period: so a revoked key stops within five seconds on every replica, and an outage of PostgreSQL does not stop
//! publishing. The refresh has a connection of its own, and it alone decides whether PostgreSQL answers: a request may
//! fail because other requests hold every connection.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use database::{ApiDatabase, Limits, Nonce, PresentedKey, SignedRequest};
use domain::causes::with_causes;
use domain::clock::Clock;
use domain::failure::FailureClass;
use tokio::time::Instant;

use crate::refusals::Refusals;
use crate::{ApiKey, Caller, RefusalLimits, RequestSignature};

/// How old the confirmation of a remembered key may be while PostgreSQL answers: below the promised five seconds by the time
/// of an answer.
const CONFIRMED_FOR: Duration = Duration::from_secs(4);

/// How often [`Authenticator::refresh`] is to run.
const REFRESH_EVERY: Duration = Duration::from_secs(2);

/// Time limits of its statements. An outage is known before a confirmation is too old.
const REFRESH: Limits =
    Limits { time_out: Duration::from_millis(1500), lock_time_out: Duration::from_millis(1500) };

/// How many keys are asked for in one statement.
const KEYS_AT_ONCE: usize = 1_000;

/// Settings of the authentication.
#[derive(Debug, Clone, Copy)]
pub struct AuthenticatorSettings {
    /// How long a key goes on after PostgreSQL confirmed it last, while PostgreSQL does not answer. 0: not at all.
    pub grace: Duration,
    /// How far the timestamp of a signed request may be from the clock of this process.
    pub signature_window: Duration,
    /// How many refused credentials of one address PostgreSQL is asked about.
    pub refusals: RefusalLimits,
}

/// Why a key is not accepted.
#[derive(Debug, thiserror::Error)]
pub enum NotAuthenticated {
    /// No key has this id and secret.
    #[error("the key is unknown")]
    Unknown,
    /// It was revoked.
    #[error("the key was revoked")]
    Revoked,
    /// It has expired, or its secret was replaced.
    #[error("the key has expired, or its secret was rotated; `verbatim keys list` shows which")]
    Expired,
    /// It is not accepted from this address.
    #[error("the key is not accepted from this address")]
    Address,
    /// The key did not sign the request.
    #[error(
        "the signature is not that of this request with this key; it covers the method, path and query, timestamp, nonce \
         and body"
    )]
    Signature,
    /// The request was signed too long ago, or later than now.
    #[error(
        "the timestamp is more than {0:?} from the time of the server; check the clock of the client"
    )]
    Stale(Duration),
    /// The request was received before.
    #[error("a request with this nonce was received before; sign each request with a new nonce")]
    Replayed,
    /// PostgreSQL may have lost its nonce.
    #[error(
        "the request was signed before the last failover or restore of PostgreSQL, so nobody can tell whether it was \
         received before; sign it again, with a new timestamp and nonce"
    )]
    NonceUnknown,
    /// Too many credentials from this address were refused. PostgreSQL is asked about another one after this time.
    #[error(
        "too many credentials from this address were refused, so this one was not checked; wait as long as Retry-After says"
    )]
    TooMany(Duration),
    /// PostgreSQL cannot be asked.
    #[error("keys cannot be checked: PostgreSQL is unavailable")]
    Unavailable(#[source] database::Error),
}

/// Accepts keys. Shared by all requests of a process.
pub struct Authenticator {
    database: ApiDatabase,
    /// One connection that no request takes, for the refresh.
    apart: ApiDatabase,
    clock: Clock,
    settings: AuthenticatorSettings,
    remembered: Mutex<HashMap<String, Remembered>>,
    refusals: Refusals,
    /// Whether PostgreSQL answered the last refresh.
    answers: AtomicBool,
}

/// A key that PostgreSQL confirmed.
struct Remembered {
    secret_hash: [u8; 32],
    version: i64,
    caller: Arc<Caller>,
    confirmed_at: Instant,
    used_at: Option<DateTime<Utc>>,
    used: Instant,
}

impl Authenticator {
    /// Knows no key yet.
    #[must_use]
    pub fn new(database: ApiDatabase, clock: Clock, settings: AuthenticatorSettings) -> Self {
        Self {
            apart: database.apart(REFRESH),
            database,
            clock,
            settings,
            remembered: Mutex::default(),
            refusals: Refusals::new(settings.refusals),
            answers: AtomicBool::new(true),
        }
    }

    /// The caller with this key, at this address.
    ///
    /// # Errors
    /// The key is not accepted.
    pub async fn caller(
        &self,
        key: &ApiKey,
        address: IpAddr,
    ) -> Result<Arc<Caller>, NotAuthenticated> {
        if let Some(caller) = self.remembered(key) {
            return self.admitted(caller, address);
        }
        // Others behind the same address do not have the secret.
        if self.is_known(key) {
            return self.admitted(self.confirmed(key).await?, address);
        }
        let question = self.refusals.ask(address, None).map_err(NotAuthenticated::TooMany)?;
        let answer = self.confirmed(key).await.and_then(|caller| self.admitted(caller, address));
        if !is_refusal(&answer) {
            question.settled();
        }
        answer
    }

    /// The caller that signed a request for this method and this path with query, at this address. Each signature is accepted
    /// once, on whatever replica. The body is to be compared too, when it is read: [`RequestSignature::is_of_body`].
    ///
    /// # Errors
    /// The signature is not accepted.
    pub async fn signed(
        &self,
        signature: &RequestSignature,
        (method, target): (&str, &str),
        address: IpAddr,
    ) -> Result<Arc<Caller>, NotAuthenticated> {
        let window = self.settings.signature_window;
        if !signature.is_fresh(self.now(), window) {
            return Err(NotAuthenticated::Stale(window));
        }
        let request = signature.request(method, target, window);
        let key = signature.key.as_str();
        let question = self.refusals.ask(address, Some(key)).map_err(NotAuthenticated::TooMany)?;
        let answer = self.signer(&request).await.and_then(|caller| self.admitted(caller, address));
        if answer.is_ok() {
            self.refusals.signed(address, key);
        }
        if !is_refusal(&answer) {
            question.settled();
        }
        answer
    }

    /// Asks PostgreSQL, which stores the nonce.
    async fn signer(&self, request: &SignedRequest<'_>) -> Result<Arc<Caller>, NotAuthenticated> {
        let found = self.database.signed_request(request).await;
        let (presented, nonce) =
            found.map_err(NotAuthenticated::Unavailable)?.ok_or(NotAuthenticated::Signature)?;
        let caller = Arc::new(caller_of(request.key, presented)?);
        match nonce {
            Nonce::New => Ok(caller),
            Nonce::Used => Err(NotAuthenticated::Replayed),
            Nonce::Unknown => Err(NotAuthenticated::NonceUnknown),
        }
    }

    fn admitted(
        &self,
        caller: Arc<Caller>,
        address: IpAddr,
    ) -> Result<Arc<Caller>, NotAuthenticated> {
        if caller.is_expired(self.now()) {
            return Err(NotAuthenticated::Expired);
        }
        if !caller.is_admitted_from(address) {
            return Err(NotAuthenticated::Address);
        }
        Ok(caller)
    }

    /// Asks which remembered keys are still valid, and records when they were last used. To be run every
    /// [`Self::REFRESH_EVERY`].
    ///
    /// # Errors
    /// PostgreSQL failed.
    pub async fn refresh(&self) -> Result<(), database::Error> {
        let confirmed = self.confirm_remembered().await;
        let is_unavailable =
            confirmed.as_ref().is_err_and(|error| error.class() == FailureClass::Unavailable);
        self.answers.store(!is_unavailable, Ordering::Relaxed);
        for used in confirmed?.chunks(KEYS_AT_ONCE) {
            let used: Vec<_> = used.iter().map(|(id, at)| (id.as_str(), *at)).collect();
            // Only lists show it: where it cannot be stored, such as on a read-only server, keys are valid nevertheless.
            if let Err(error) = self.apart.api_keys_used(&used).await {
                let error = with_causes(&error);
                tracing::debug!(error, "the times when keys were last used could not be stored");
                break;
            }
        }
        Ok(())
    }

    /// Returns when the remembered keys were used since the last time.
    async fn confirm_remembered(&self) -> Result<Vec<(String, DateTime<Utc>)>, database::Error> {
        let asked_at = Instant::now();
        let ids: Vec<String> = {
            let mut remembered = self.all();
            // A key that is not used is not asked for: it is confirmed again when it is.
            let kept_for = self.settings.grace.max(CONFIRMED_FOR);
            remembered.retain(|_, it| it.used.elapsed() < kept_for);
            remembered.keys().cloned().collect()
        };
        if ids.is_empty() {
            // So that an outage is known also while no key is remembered.
            self.apart.probe().await?;
        }
        let mut used = Vec::new();
        for ids in ids.chunks(KEYS_AT_ONCE) {
            let asked: Vec<&str> = ids.iter().map(String::as_str).collect();
            let versions = self.apart.api_key_versions(&asked).await?.into_iter().collect();
            used.extend(self.settle(ids, &versions, asked_at));
        }
        Ok(used)
    }

    /// How often [`Self::refresh`] is to run.
    pub const REFRESH_EVERY: Duration = REFRESH_EVERY;

    /// Confirms the keys with these versions, forgets the others of those asked for. Returns when the confirmed ones were
    /// used since the last time.
    fn settle(
        &self,
        ids: &[String],
        versions: &HashMap<String, i64>,
        asked_at: Instant,
    ) -> Vec<(String, DateTime<Utc>)> {
        let mut remembered = self.all();
        let mut used = Vec::new();
        for id in ids {
            let Some(it) = remembered.get_mut(id) else { continue };
            if versions.get(id) == Some(&it.version) {
                it.confirmed_at = it.confirmed_at.max(asked_at);
                used.extend(it.used_at.take().map(|at| (id.clone(), at)));
            } else if it.confirmed_at < asked_at {
                remembered.remove(id);
            }
        }
        used
    }

    /// The caller of a remembered key that needs no question.
    fn remembered(&self, key: &ApiKey) -> Option<Arc<Caller>> {
        let now = self.now();
        let mut remembered = self.all();
        let it = remembered.get_mut(key.id())?;
        let good_for = match self.answers.load(Ordering::Relaxed) {
            true => CONFIRMED_FOR,
            false => self.settings.grace,
        };
        if it.secret_hash != key.secret_hash() || it.confirmed_at.elapsed() >= good_for {
            return None;
        }
        it.used_at = Some(now);
        it.used = Instant::now();
        Some(Arc::clone(&it.caller))
    }

    /// Whether PostgreSQL confirmed this secret, however long ago.
    fn is_known(&self, key: &ApiKey) -> bool {
        self.all().get(key.id()).is_some_and(|it| it.secret_hash == key.secret_hash())
    }

    async fn confirmed(&self, key: &ApiKey) -> Result<Arc<Caller>, NotAuthenticated> {
        let asked_at = Instant::now();
        let secret_hash = key.secret_hash();
        let presented = match self.database.api_key(key.id(), &secret_hash).await {
            Ok(Some(presented)) => presented,
            Ok(None) => return Err(NotAuthenticated::Unknown),
            // The refresh may have noticed an outage meanwhile.
            Err(error) => {
                return self.remembered(key).ok_or(NotAuthenticated::Unavailable(error));
            }
        };
        let version = presented.version;
        let caller = Arc::new(caller_of(key.id(), presented)?);
        if !caller.is_expired(self.now()) {
            let remembered = Remembered {
                secret_hash,
                version,
                caller: Arc::clone(&caller),
                confirmed_at: asked_at,
                used_at: Some(self.now()),
                used: asked_at,
            };
            self.all().insert(key.id().to_owned(), remembered);
        }
        Ok(caller)
    }

    fn now(&self) -> DateTime<Utc> {
        self.clock.now().into()
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Remembered>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether PostgreSQL was asked about a credential that is not accepted.
fn is_refusal(answer: &Result<Arc<Caller>, NotAuthenticated>) -> bool {
    !matches!(answer, Ok(_) | Err(NotAuthenticated::Unavailable(_)))
}

/// The caller with a key that PostgreSQL found, unless it is revoked.
fn caller_of(key: &str, presented: PresentedKey) -> Result<Caller, NotAuthenticated> {
    if presented.revoked_at.is_some() {
        return Err(NotAuthenticated::Revoked);
    }
    Caller::of(key, presented).ok_or_else(|| {
        tracing::error!(key, "API key refused: its tenant or one of its networks is unreadable");
        NotAuthenticated::Unknown
    })
}

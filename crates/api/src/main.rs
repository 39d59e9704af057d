//! `conversation-api`: conversations, statistics and publishing over HTTP.
//!
//! Every endpoint is a row of `endpoints.rs`: path, scope, parameters, answers. The router, the checks that precede a
//! handler (`pipeline.rs`) and the OpenAPI document (`openapi.rs`) derive from these rows, so none of them can forget one.
//!
//! Invariants: the tenant of a request comes from its key, never from its body; a handler gets a database that sees that
//! tenant alone; another tenant's id is answered as an id that never was.

mod after;
mod api;
mod audit;
mod bodies;
mod client_address;
mod connections;
mod cursor;
mod documents;
mod endpoint;
mod endpoints;
mod etag;
mod lag;
mod openapi;
mod parameters;
mod pipeline;
mod problem;
mod rates;
mod read_replica;
mod reference;
mod settings;
mod stale_reads;
mod stream;
mod tls;
mod views;

use std::process::ExitCode;
use std::sync::Arc;

use access::Authenticator;
use anyhow::Context as _;
use domain::causes::with_causes;
use domain::fleet;
use service::Service;
use stores::{ApiDatabaseServer, Broker};
use tokio::net::TcpListener;

use crate::api::Api;
use crate::read_replica::ReadReplica;
use crate::settings::Settings;
use crate::tls::Tls;

fn main() -> ExitCode {
    service::run(fleet::CONVERSATION_API, build)
}

async fn build(service: Service, settings: Settings) -> anyhow::Result<()> {
    // Bound first: a taken address is told before anything waits for a server.
    let listener = TcpListener::bind(settings.api_listen).await.with_context(|| {
        format!("cannot listen on {} (VERBATIM_API_LISTEN)", settings.api_listen)
    })?;
    settings.check()?;
    let tls = match settings.tls()? {
        Some(files) => Some(Arc::new(Tls::open(&service, files).await?)),
        None => None,
    };
    let reload = settings.api_tls_reload;
    let server = ApiDatabaseServer::of_service(&service, &settings.access, settings.database())?;
    server.watch(&service);
    server.wait_until_verified().await?;
    let read_replica = ReadReplica::open(&service, &settings, &server).await?;
    let authenticator = Arc::new(Authenticator::new(
        server.database.clone(),
        service.clock().clone(),
        settings.authenticator(),
    ));
    refresh_keys(&service, &authenticator);
    let address = listener.local_addr()?;
    let endpoints = Broker::of_process(&settings.amqp, service.process())?.endpoints;
    let api =
        Arc::new(Api::new(&service, settings, server, read_replica, authenticator, &endpoints));
    match &tls {
        Some(tls) => tls.watch(&service, reload),
        None if address.ip().is_loopback() => {}
        None => tracing::warn!(
            "the API listens on {address} without TLS: set VERBATIM_API_TLS_CERTIFICATE and VERBATIM_API_TLS_KEY, put a \
             proxy with TLS before it, or set VERBATIM_API_LISTEN to a loopback address"
        ),
    }
    let scheme = if tls.is_some() { "https" } else { "http" };
    tracing::info!(%address, "serving the API on {scheme}://{address}");
    connections::serve(&service, listener, api, tls);
    Ok(())
}

/// Confirms the remembered keys, until the process stops.
fn refresh_keys(service: &Service, authenticator: &Arc<Authenticator>) {
    let authenticator = Arc::clone(authenticator);
    service.support("keys", move |stopping| {
        let authenticator = Arc::clone(&authenticator);
        async move {
            let refresh = async {
                // A line when it begins to fail, and not every two seconds.
                let mut is_failing = false;
                loop {
                    let refreshed = authenticator.refresh().await;
                    let was_failing = std::mem::replace(&mut is_failing, refreshed.is_err());
                    if let (Err(error), false) = (refreshed, was_failing) {
                        let error = with_causes(&error);
                        tracing::warn!(error, "API keys could not be confirmed; keys confirmed before go on for VERBATIM_AUTH_GRACE");
                    }
                    tokio::time::sleep(Authenticator::REFRESH_EVERY).await;
                }
            };
            stopping.run_until_cancelled(refresh).await;
            Ok(())
        }
    });
}

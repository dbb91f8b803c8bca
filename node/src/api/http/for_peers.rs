//! Requests of peers, which their own clients asked them: answered through the very same routes and handlers as those of local
//! clients. The peer has judged its client; here the peer itself is the one who asks. Nothing is tunnelled on.

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, header};
use futures::StreamExt;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use pangea_client::ErrorKind;
use tracing::Instrument;

use super::error::ApiError;
use super::key_holder::{AskingPeer, KeyHolder};
use super::traced::Traced;
use crate::traces::{self, entrance};
use crate::tunnel::answering::{Answer, PeerRequest};
use crate::tunnel::{AnswerForm, Failure};

/// Answers a request through `routes`, which have neither a guard nor an entrance in front.
///
/// # Errors
/// The failure that the handler gives.
pub(super) async fn answer(routes: TowerToHyperService<Router>, asked: PeerRequest) -> Result<Answer, Failure> {
    let internal = |what: String| Failure::new(ErrorKind::Internal, what);
    let holder = KeyHolder::of_peer(AskingPeer { peer: asked.peer, model: asked.ask.model, tally: asked.tally });
    let mut request = Request::post(asked.ask.route.path())
        .header(header::CONTENT_TYPE, AnswerForm::Document.content_type())
        .body(Body::from(asked.body))
        .map_err(|error| internal(error.to_string()))?;
    request.extensions_mut().insert(holder);
    let span = traces::following(asked.ask.trace, || {
        let (peer, route) = (asked.peer, asked.ask.route.path());
        entrance!("answer", otel.kind = "server", client.address = %peer, http.route = route)
    });
    let mut response: Response<Body> = match routes.call(request).instrument(span.clone()).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        let failure = Failure::from(error);
        traces::failed(&span, failure.kind);
        return Err(failure);
    }
    let kind = response.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let form = kind.and_then(AnswerForm::of_content_type);
    match form.filter(|_| response.status().is_success()) {
        Some(form) => {
            let body = Body::new(Traced::new(span, response.into_body())).into_data_stream();
            Ok(Answer { form, body: body.map(|piece| piece.map_err(|error| error.to_string())).boxed() })
        }
        None => Err(internal(format!("the route gave status {} and no answer", response.status()))),
    }
}

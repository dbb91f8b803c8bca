//! Who belongs to the pool: `/api/pangea/members`, invitations, and what the owner decides about nodes that wait. All of it is the
//! owner's: digits and tokens let nodes in. Values are parsed here; the rest is `pool`'s.

use std::time::Duration;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use pangea_client::{ErrorKind, MemberStatus, MembersStatus};
use pangea_control::membership::{Role, Terms, invitation};
use qrcode::{Color, EcLevel, QrCode};
use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::Fields;
use super::key_holder::KeyHolder;
use super::{App, Body};
use crate::api::terms;
use crate::pool::Members;

/// Validity of an invitation where none is named: an hour, in which a person walks to the other device.
const VALID_S: u64 = 3600;

/// Validity of a certificate where none is named: ten years, as `pangea invite` has it.
const MEMBER_FOR_S: u64 = 3650 * 24 * 3600;

/// The routes of this file.
pub(super) fn routes() -> Router<App> {
    Router::new()
        .route("/api/pangea/members", get(list))
        .route("/api/pangea/members/compare", post(compare))
        .route("/api/pangea/members/accept", post(accept))
        .route("/api/pangea/members/revoke", post(revoke))
        .route("/api/pangea/invitations", post(invite))
}

fn members<'a>(app: &'a App, holder: &KeyHolder) -> Result<&'a Members, ApiError> {
    holder.check_owner()?;
    let none = || ApiError::new(ErrorKind::Unavailable, "this node runs without a network and belongs to no pool");
    app.members.as_ref().ok_or_else(none)
}

/// `/api/pangea/members`: the same as `pangea members list --json`.
async fn list(State(app): State<App>, holder: KeyHolder) -> Result<Json<MembersStatus>, ApiError> {
    Ok(Json(members(&app, &holder)?.list()))
}

/// `/api/pangea/members/compare`: asks a waiting node to show six digits; answers with the node and the same digits.
async fn compare(State(app): State<App>, holder: KeyHolder, body: Body) -> Result<Json<MemberStatus>, ApiError> {
    let members = members(&app, &holder)?;
    let node: String = Fields::read(body).await?.required("node")?;
    Ok(Json(members.compare(&node).await?))
}

/// `/api/pangea/members/accept`: admits a waiting node whose screen shows these digits.
async fn accept(State(app): State<App>, holder: KeyHolder, body: Body) -> Result<Json<MemberStatus>, ApiError> {
    let members = members(&app, &holder)?;
    let mut fields = Fields::read(body).await?;
    let (node, digits): (String, String) = (fields.required("node")?, fields.required("digits")?);
    let digits = terms::digits(&digits)?;
    Ok(Json(members.accept(&node, digits, terms_of(&mut fields)?)?))
}

/// `/api/pangea/members/revoke`: revokes a member, or turns a waiting node away.
async fn revoke(State(app): State<App>, holder: KeyHolder, body: Body) -> Result<Json<MemberStatus>, ApiError> {
    let members = members(&app, &holder)?;
    let node: String = Fields::read(body).await?.required("node")?;
    Ok(Json(members.revoke(&node)?))
}

/// `/api/pangea/invitations`: opens an invitation; the token as text and as a QR code, and a PIN if asked for.
async fn invite(State(app): State<App>, holder: KeyHolder, body: Body) -> Result<Json<Value>, ApiError> {
    let members = members(&app, &holder)?;
    let mut fields = Fields::read(body).await?;
    let terms = terms_of(&mut fields)?;
    let valid_s = fields.optional("valid_s")?.unwrap_or(VALID_S);
    let uses = fields.optional("uses")?.unwrap_or(1);
    terms::check_validity(valid_s)?;
    terms::check_uses(uses)?;
    let pin = fields.optional("pin")?.unwrap_or(false);
    let invited = members.invite(terms, Duration::from_secs(valid_s), uses, pin).await?;
    let pin_life_s = invited.pin.as_ref().map(|_| invitation::PIN_LIFE_S);
    Ok(Json(json!({
        "token": invited.token, "qr": qr(&invited.token), "pin": invited.pin, "pin_life_s": pin_life_s,
        "expires": invited.expires_unix_s,
    })))
}

fn terms_of(fields: &mut Fields) -> Result<Terms, ApiError> {
    let role: String = fields.optional("role")?.unwrap_or_else(|| Role::Member.name().to_owned());
    Ok(terms::terms(&role, fields.optional("member_for_s")?.unwrap_or(MEMBER_FOR_S))?)
}

/// The rows of a QR code, `1` for a dark square; none for a text that is too long for one.
fn qr(text: &str) -> Vec<String> {
    let Ok(code) = QrCode::with_error_correction_level(text, EcLevel::L) else { return Vec::new() };
    let squares = code.to_colors();
    let row = |row: &[Color]| row.iter().map(|square| if *square == Color::Dark { '1' } else { '0' }).collect();
    squares.chunks(code.width()).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_qr_code_is_a_square_of_ones_and_zeros() {
        let rows = qr("pangea-token");
        assert!(rows.len() >= 21 && rows.iter().all(|row| row.len() == rows.len()), "{rows:?}");
        // The finder pattern in the corner.
        assert!(rows[0].starts_with("1111111") && rows[1].starts_with("1000001"), "{rows:?}");
        assert!(qr(&"x".repeat(10_000)).is_empty());
    }
}

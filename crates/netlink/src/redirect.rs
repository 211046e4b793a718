//! Redirection: all that comes in by one link leaves by another, without a look at it (tc-mirred(8)).
//!
//! It is one filter under the link's ingress queueing discipline, of which a link can have one.

use std::num::TryFromIntError;

use futures_util::stream::TryStreamExt as _;
use netlink_packet_route::tc::{
    TcActionAttribute, TcActionMirrorOption, TcActionOption, TcAttribute, TcFilterU32Option, TcHandle,
    TcMessage, TcMirrorActionType, TcOption,
};

use crate::{Error, Netlink};

/// `ETH_P_ALL` (`linux/if_ether.h`)
const EVERY_PROTOCOL: u16 = 3;

impl Netlink {
    /// True if a link has an ingress queueing discipline, ours or another's.
    pub fn has_ingress(&self, index: u32) -> Result<bool, Error> {
        let request = self.handle.qdisc().get().index(number(index)?);
        let found: Vec<TcMessage> = self.wait(
            "list queueing disciplines of link with index",
            index,
            request.execute().try_collect(),
        )?;
        // The kernel lists all links' whatever is asked for.
        let is_own = |message: &TcMessage| u32::try_from(message.header.index) == Ok(index);
        Ok(found.iter().any(|message| is_own(message) && message.header.parent == TcHandle::INGRESS))
    }

    /// Redirects what comes in by link `from` to `to`. A link that has an ingress queueing discipline is refused.
    pub fn add_redirect(&self, from: u32, to: u32) -> Result<(), Error> {
        let verb = "redirect link with index";
        let device = number(from)?;
        self.wait(verb, from, self.handle.qdisc().add(device).ingress().execute())?;
        let filter = self.handle.traffic_filter(device).add();
        let filter = filter.parent(TcHandle { major: u16::MAX, minor: 0 }.into()).priority(1);
        let filter = filter.protocol(EVERY_PROTOCOL.to_be()).redirect(to);
        let filter = filter.map_err(|error| Error::request(verb, from.to_string(), error))?;
        self.wait(verb, from, filter.execute())
    }

    /// Ends the redirection of a link by removing its ingress queueing discipline; none is an error.
    pub fn delete_redirect(&self, from: u32) -> Result<(), Error> {
        let mut request = self.handle.qdisc().del(number(from)?);
        let header = &mut request.message_mut().header;
        header.parent = TcHandle::INGRESS;
        header.handle = TcHandle { major: u16::MAX, minor: 0 };
        self.wait("end redirection of link with index", from, request.execute())
    }

    /// The link to which all that comes in by link `from` is redirected; none if that is not so.
    pub fn redirect(&self, from: u32) -> Result<Option<u32>, Error> {
        let request = self.handle.traffic_filter(number(from)?).get().ingress();
        let filters: Result<Vec<TcMessage>, _> =
            self.wait("list filters of link with index", from, request.execute().try_collect());
        match filters {
            Ok(filters) => Ok(filters.iter().find_map(target)),
            // Without an ingress queueing discipline there is nothing to ask.
            Err(error) if error.is_not_found() || error.errno() == Some(libc::EINVAL) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Traffic control counts links with a sign.
fn number(index: u32) -> Result<i32, Error> {
    i32::try_from(index).map_err(|source: TryFromIntError| Error::Index { index, source })
}

/// Where a filter sends packets, if it does.
fn target(filter: &TcMessage) -> Option<u32> {
    let options = filter.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    })?;
    let actions = options.iter().find_map(|option| match option {
        TcOption::U32(TcFilterU32Option::Action(actions)) => Some(actions),
        _ => None,
    })?;
    actions.iter().flat_map(|action| &action.attributes).find_map(|attribute| {
        let TcActionAttribute::Options(options) = attribute else { return None };
        options.iter().find_map(|option| match option {
            TcActionOption::Mirror(TcActionMirrorOption::Parms(mirror))
                if mirror.eaction == TcMirrorActionType::EgressRedir =>
            {
                Some(mirror.ifindex)
            }
            _ => None,
        })
    })
}

package pionsfu

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pion/sdp/v3"
	"github.com/pion/stun/v4"

	"github.com/sidestream-dev/sidestream/adapters/media"
)

// How an address is asked for (RFC 8489, section 6.2.1): it takes 2.1 s where nobody answers.
const (
	stunAttempts = 3
	stunTimeout  = 300 * time.Millisecond
)

// advertised is an address at which clients reach media ports of this server.
type advertised struct {
	addr netip.Addr
	port uint16         // 0: the same as the server's own
	of   netip.AddrPort // the one port that it leads to; the zero value: every one of its family
}

// finishCandidates drops the candidates of RTCP, which has no port of its own, and puts the advertised addresses before
// the others: each with every port that it leads to.
func finishCandidates(attributes []sdp.Attribute, all []advertised) []sdp.Attribute {
	var kept, added []sdp.Attribute
	at := -1
	for _, a := range attributes {
		if a.Key != "candidate" {
			kept = append(kept, a)
			continue
		}
		// foundation component transport priority address port typ host ... (RFC 8839, section 5.1)
		fields := strings.Fields(a.Value)
		if len(fields) < 8 || fields[1] != "1" {
			continue
		}
		if at < 0 {
			at = len(kept)
		}
		kept = append(kept, a)
		own, err := netip.ParseAddrPort(net.JoinHostPort(fields[4], fields[5]))
		if err != nil || fields[7] != "host" {
			continue
		}
		for i, public := range all {
			if public.addr.Is4() != own.Addr().Is4() || public.of.IsValid() && (public.of != own || fields[2] != "udp") {
				continue
			}
			extra := slices.Clone(fields)
			extra[0], extra[4] = "advertised"+strconv.Itoa(i), public.addr.String()
			if public.port != 0 {
				extra[5] = strconv.Itoa(int(public.port))
			}
			if a := (sdp.Attribute{Key: "candidate", Value: strings.Join(extra, " ")}); !slices.Contains(added, a) {
				added = append(added, a)
			}
		}
	}
	if at < 0 {
		return kept
	}
	return slices.Insert(kept, at, added...)
}

// askSTUN asks a STUN server, by each media port before that is in use, at which address it is seen from outside.
func (s *Server) askSTUN(ctx context.Context) {
	if s.config.STUNServer == "" {
		return
	}
	for _, port := range s.sockets {
		own := port.LocalAddr().(*net.UDPAddr).AddrPort()
		if own = netip.AddrPortFrom(own.Addr().Unmap(), own.Port()); own.Addr().IsLoopback() && len(s.sockets) > 1 {
			continue
		}
		public, err := mappedAddress(ctx, port, own, s.config.STUNServer)
		switch {
		case err != nil:
			s.logger.Warn("address is not known from outside", "local", own, "server", s.config.STUNServer, "error", err)
		case public != own:
			s.logger.Info("address is known from outside", "local", own, "public", public)
			s.advertised = append(s.advertised, advertised{public.Addr(), public.Port(), own})
		}
	}
}

// mappedAddress is how a STUN server sees a port.
func mappedAddress(ctx context.Context, port *media.Port, own netip.AddrPort, server string) (netip.AddrPort, error) {
	network := "ip4"
	if own.Addr().Is6() {
		network = "ip6"
	}
	host, number, err := net.SplitHostPort(server)
	if err != nil {
		return netip.AddrPort{}, err
	}
	bounded, cancel := context.WithTimeout(ctx, stunAttempts*stunTimeout)
	defer cancel()
	found, err := net.DefaultResolver.LookupNetIP(bounded, network, host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	n, err := strconv.ParseUint(number, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("port %q is no number up to 65535", number)
	}
	to := netip.AddrPortFrom(found[0].Unmap(), uint16(n))
	defer port.SetReadDeadline(time.Time{}) //nolint:errcheck // it could be set a moment ago
	b := make([]byte, 1500)
	err = errors.New("no answer")
	for attempt := range stunAttempts {
		ask, made := stun.Build(stun.TransactionID, stun.BindingRequest)
		if made != nil {
			return netip.AddrPort{}, made
		}
		if _, sent := port.WriteToUDPAddrPort(ask.Raw, to); sent != nil {
			return netip.AddrPort{}, sent
		}
		if set := port.SetReadDeadline(time.Now().Add(stunTimeout << attempt)); set != nil {
			return netip.AddrPort{}, set
		}
		for ctx.Err() == nil {
			n, from, read := port.UDPConn.ReadFromUDPAddrPort(b)
			if read != nil {
				break
			}
			answer := &stun.Message{Raw: b[:n]}
			if netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) != to || answer.Decode() != nil ||
				answer.TransactionID != ask.TransactionID {
				continue // a stranger's
			}
			var mapped stun.XORMappedAddress
			if err = mapped.GetFrom(answer); err != nil {
				return netip.AddrPort{}, fmt.Errorf("read answer: %w", err)
			}
			addr, ok := netip.AddrFromSlice(mapped.IP)
			if !ok || mapped.Port <= 0 || mapped.Port > 65535 {
				return netip.AddrPort{}, errors.New("the answer has no address")
			}
			return netip.AddrPortFrom(addr.Unmap(), uint16(mapped.Port)), nil
		}
	}
	return netip.AddrPort{}, err
}

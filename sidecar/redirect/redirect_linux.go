package redirect

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tableName is the nftables table that holds our rule and nothing else.
const tableName = "sidestream"

// register is where a rule's expressions hand each other what they look at.
const register = 1

// Set makes the rule in this network namespace, in place of one of an earlier call. It needs CAP_NET_ADMIN, and a kernel of 5.2
// or later.
func Set(from, to uint16) error {
	conn, err := nftables.New()
	if err != nil {
		return fmt.Errorf("redirect port %d to %d: %w", from, to, err)
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: tableName}
	conn.AddTable(table) // so that there is one to delete
	conn.DelTable(table)
	conn.AddTable(table)
	chain := conn.AddChain(&nftables.Chain{
		Name: "prerouting", Table: table, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	loopback := make([]byte, unix.IFNAMSIZ)
	copy(loopback, "lo")
	conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		// What the pod says to itself, the sidecar to the media server above all, stays as it is.
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: register},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: register, Data: loopback},
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: register},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: register, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}, // destination port
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: binary.BigEndian.AppendUint16(nil, from)},
		&expr.Fib{Register: register, FlagDADDR: true, ResultADDRTYPE: true},
		&expr.Cmp{Op: expr.CmpOpEq, Register: register, Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
		&expr.Immediate{Register: register, Data: binary.BigEndian.AppendUint16(nil, to)},
		&expr.Redir{RegisterProtoMin: register},
	}})
	if err := conn.Flush(); err != nil {
		if errors.Is(err, syscall.EPERM) {
			err = fmt.Errorf("%w: the container needs the capability NET_ADMIN, and user 0", err)
		}
		return fmt.Errorf("redirect port %d to %d by nftables: %w", from, to, err)
	}
	return nil
}

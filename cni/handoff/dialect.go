package handoff

import (
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/ambitmesh/ambit/cni/handoff/zds"
)

// Our extensions, in fields that the messages do not define. Unknown fields
// are skipped by every protobuf implementation, so a foreign end is not
// disturbed by them and answers as if they were not there.
const (
	helloDialect   protowire.Number = 100 // ZdsHello: string, the dialect asked for
	helloVersion   protowire.Number = 101 // ZdsHello: string, the ztunnel's version
	addSocketKinds protowire.Number = 100 // AddWorkload: packed uint32, one kind per passed socket after the namespace
	addFromStart   protowire.Number = 101 // AddWorkload: bytes, there when Pod.FromStart is true
	delRetire      protowire.Number = 100 // DelWorkload: bytes, there when connections are to go on
)

const (
	dialectPort = "port"
	dialectSlot = "slot"
)

// hello is a ZdsHello as both ends see it.
type hello struct {
	dialect string
	version string
}

func (h hello) encode() ([]byte, error) {
	m := &zds.ZdsHello{Version: zds.Version_V1}
	var ext []byte
	if h.dialect == dialectSlot {
		ext = protowire.AppendTag(ext, helloDialect, protowire.BytesType)
		ext = protowire.AppendString(ext, h.dialect)
	}
	if h.version != "" {
		ext = protowire.AppendTag(ext, helloVersion, protowire.BytesType)
		ext = protowire.AppendString(ext, h.version)
	}
	m.ProtoReflect().SetUnknown(ext)
	return marshal(m)
}

func decodeHello(b []byte) (hello, error) {
	m := new(zds.ZdsHello)
	if err := proto.Unmarshal(b, m); err != nil {
		return hello{}, fmt.Errorf("ZdsHello: %w", err)
	}
	if m.Version != zds.Version_V1 {
		return hello{}, fmt.Errorf("ZdsHello: field version: want %d, have %d", zds.Version_V1, m.Version)
	}
	h := hello{dialect: dialectPort}
	if v, ok := unknownBytes(m.ProtoReflect().GetUnknown(), helloDialect); ok && string(v) == dialectSlot {
		h.dialect = dialectSlot
	}
	if v, ok := unknownBytes(m.ProtoReflect().GetUnknown(), helloVersion); ok {
		h.version = string(v)
	}
	return h, nil
}

func encodeAdd(p Pod, kinds []kind) ([]byte, error) {
	add := &zds.AddWorkload{
		Uid: p.UID,
		WorkloadInfo: &zds.WorkloadInfo{
			Name:           p.Name,
			Namespace:      p.Namespace,
			ServiceAccount: p.ServiceAccount,
		},
	}
	var ext []byte
	if len(kinds) > 0 {
		var packed []byte
		for _, k := range kinds {
			packed = protowire.AppendVarint(packed, uint64(k))
		}
		ext = protowire.AppendTag(ext, addSocketKinds, protowire.BytesType)
		ext = protowire.AppendBytes(ext, packed)
	}
	if p.FromStart {
		ext = protowire.AppendTag(ext, addFromStart, protowire.BytesType)
		ext = protowire.AppendBytes(ext, []byte{1})
	}
	add.ProtoReflect().SetUnknown(ext)
	return marshal(&zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Add{Add: add}})
}

func fromStart(add *zds.AddWorkload) bool {
	_, ok := unknownBytes(add.ProtoReflect().GetUnknown(), addFromStart)
	return ok
}

// socketKinds reads what the sockets passed with an Add are for. An Add
// without the field has none: the port dialect.
func socketKinds(add *zds.AddWorkload) ([]kind, error) {
	packed, ok := unknownBytes(add.ProtoReflect().GetUnknown(), addSocketKinds)
	if !ok {
		return nil, nil
	}
	var kinds []kind
	for len(packed) > 0 {
		v, n := protowire.ConsumeVarint(packed)
		if n < 0 {
			return nil, fmt.Errorf("AddWorkload: field %d: %w", addSocketKinds, protowire.ParseError(n))
		}
		if v < uint64(kindOutbound) || v > uint64(kindDNSUDP) {
			return nil, fmt.Errorf("AddWorkload: field %d: unknown kind of socket %d", addSocketKinds, v)
		}
		kinds = append(kinds, kind(v))
		packed = packed[n:]
	}
	return kinds, nil
}

func encodeDel(uid string) ([]byte, error) {
	return marshal(&zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Del{Del: &zds.DelWorkload{Uid: uid}}})
}

// encodeRetire is a Del whose connections go on. Only a ztunnel of ours is sent
// one, and an older of ours takes it for a plain Del.
func encodeRetire(uid string) ([]byte, error) {
	del := &zds.DelWorkload{Uid: uid}
	ext := protowire.AppendTag(nil, delRetire, protowire.BytesType)
	del.ProtoReflect().SetUnknown(protowire.AppendBytes(ext, []byte{1}))
	return marshal(&zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Del{Del: del}})
}

func retires(del *zds.DelWorkload) bool {
	_, ok := unknownBytes(del.ProtoReflect().GetUnknown(), delRetire)
	return ok
}

func encodeKeep(uid string) ([]byte, error) {
	return marshal(&zds.WorkloadRequest{Payload: &zds.WorkloadRequest_Keep{Keep: &zds.KeepWorkload{Uid: uid}}})
}

func encodeSnapshotSent() ([]byte, error) {
	return marshal(&zds.WorkloadRequest{Payload: &zds.WorkloadRequest_SnapshotSent{SnapshotSent: &zds.SnapshotSent{}}})
}

func encodeAck(text string) ([]byte, error) {
	// An error text must not push the datagram over the limit of the reader.
	if len(text) > maxMessage/2 {
		text = text[:maxMessage/2]
	}
	return marshal(&zds.WorkloadResponse{Payload: &zds.WorkloadResponse_Ack{Ack: &zds.Ack{Error: text}}})
}

// decodeAck returns the error text of an Ack, empty for success.
func decodeAck(b []byte) (string, error) {
	m := new(zds.WorkloadResponse)
	if err := proto.Unmarshal(b, m); err != nil {
		return "", fmt.Errorf("WorkloadResponse: %w", err)
	}
	ack, ok := m.Payload.(*zds.WorkloadResponse_Ack)
	if !ok || ack.Ack == nil {
		return "", fmt.Errorf("WorkloadResponse: field payload: want ack, have none")
	}
	return ack.Ack.Error, nil
}

// marshal is deterministic, which lets tests pin the bytes.
func marshal(m proto.Message) ([]byte, error) {
	return proto.MarshalOptions{Deterministic: true}.Marshal(m)
}

// unknownBytes finds the last length-delimited unknown field num.
func unknownBytes(unknown []byte, num protowire.Number) (value []byte, found bool) {
	for len(unknown) > 0 {
		n, typ, tag := protowire.ConsumeTag(unknown)
		if tag < 0 {
			return nil, false
		}
		unknown = unknown[tag:]
		length := protowire.ConsumeFieldValue(n, typ, unknown)
		if length < 0 {
			return nil, false
		}
		if n == num && typ == protowire.BytesType {
			value, _ = protowire.ConsumeBytes(unknown)
			found = true
		}
		unknown = unknown[length:]
	}
	return value, found
}
